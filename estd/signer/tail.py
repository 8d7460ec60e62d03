"""The segment of a journal that grows: octets are appended where disk space was set aside for them.

* *Room first.* `Tail.make_room` sets disk space aside before anything is promised that needs it, generously where there
  is plenty. Where there is none it raises `Unavailable`, and the file is as it was.
* *Half-sure is the caller's affair.* Every other fault is an `OSError`, after which nobody knows what is on the disk:
  `estd.signer.journal` then refuses everything until the journal is opened again.

Must not know what the octets mean beyond the blocks that a segment is handed over with.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final, Self

from estd.errors import Code, Unavailable
from estd.signer.blocks import HEADER_BYTES, Block, read_block, read_length
from estd.signer.segments import Files


class Tail:
    """The newest segment, open for appending. Made by `create` or `take_over`."""

    __slots__ = ("_allocated", "_files", "_segment_bytes", "_start", "_step_bytes", "end", "fd", "number")

    def __init__(
        self, files: Files, fd: int, number: int, start: int, end: int, allocated: int, sizes: tuple[int, int]
    ) -> None:
        self._files = files
        self.fd = fd
        self.number = number
        self.end = end
        """Where the next octet goes."""
        self._start = start
        """Where the segment's first block ends; what has no more than that is not full, however little it may hold."""
        self._allocated = allocated
        self._segment_bytes, self._step_bytes = sizes

    @classmethod
    def create(cls, files: Files, number: int, block: bytes, spare: int, sizes: tuple[int, int]) -> Self:
        """Begin a segment with its first block, durable together with its name, and set `spare` octets aside behind it.

        Args:
            files: where the journal is kept.
            number: of the segment.
            block: its first block.
            spare: how much must find room behind it whatever happens.
            sizes: at which length a segment is full, and how much space is set aside at a time.

        Raises:
            Unavailable: there is no room; no segment was begun.
            OSError: see the module.
        """
        path = files.segment(number)
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(fd, 0, len(block) + spare)
            os.pwrite(fd, block, 0)
            os.fsync(fd)
            files.flush_directory()
        except OSError as error:
            if fd != -1:
                os.close(fd)
                path.unlink()
            if is_full(error):
                raise no_room(error) from error
            raise
        return cls(files, fd, number, len(block), len(block), len(block) + spare, sizes)

    @classmethod
    def take_over(
        cls, files: Files, number: int, blocks: Sequence[Block], durable: int, sizes: tuple[int, int]
    ) -> Self:
        """Open a segment that holds these blocks: what follows them is cut off, and what may not be durable is made so.

        Args:
            files: where the journal is kept.
            number: of the segment.
            blocks: the blocks it holds, in order.
            durable: the sequence up to which the head vouches for them.
            sizes: as for `create`.

        Raises:
            OSError: see the module.
        """
        end = blocks[-1].end
        fd = os.open(files.segment(number), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, end)
            unsure = next((block.offset for block in blocks if block.sequence > durable), None)
            if unsure is not None:
                # Written anew, because after a failed flush the kernel may hold octets that it will never write.
                os.pwrite(fd, os.pread(fd, end - unsure, unsure), unsure)
            os.fsync(fd)
        except OSError:
            os.close(fd)
            raise
        return cls(files, fd, number, blocks[0].end, end, end, sizes)

    def is_full_with(self, octets: int) -> bool:
        """Whether so many more octets belong into the next segment."""
        return self.end + octets > self._segment_bytes and self.end > self._start

    def make_room(self, octets: int) -> None:
        """Make sure that so many octets find room behind `end`.

        Raises:
            Unavailable: they do not; the file is as it was.
            OSError: see the module.
        """
        missing = self.end + octets - self._allocated
        if missing <= 0:
            return
        # Not beyond the segment's end, unless one large block needs it.
        generous = min(self._step_bytes, max(0, self._segment_bytes - self._allocated))
        if self._allocate(max(generous, missing)) is None:
            return
        fault = self._allocate(missing)
        if fault is not None:
            raise no_room(fault) from fault

    def append(self, octets: bytes) -> None:
        """Write behind the end; `flush` makes it durable.

        Raises:
            OSError: see the module.
        """
        written = os.pwrite(self.fd, octets, self.end)
        if written != len(octets):
            raise OSError(errno.EIO, f"only {written} of {len(octets)} octets were written")
        self.end += written

    def flush(self) -> None:
        """Make everything appended durable.

        Raises:
            OSError: see the module.
        """
        os.fdatasync(self.fd)

    def finish(self) -> None:
        """Give back the space set aside behind the end, and make everything durable.

        Raises:
            OSError: see the module.
        """
        os.ftruncate(self.fd, self.end)
        self._allocated = self.end
        os.fsync(self.fd)

    def read(self, segment: int, offset: int) -> Block:
        """The block that begins there, in this segment or an older one.

        Raises:
            OSError: it cannot be read.
            BlockError: no intact block is there.
        """
        if segment == self.number:
            return _read_at(self.fd, offset)
        fd = os.open(self._files.segment(segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_at(fd, offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let the file go as it is."""
        os.close(self.fd)

    def _allocate(self, octets: int) -> OSError | None:
        """Set that much more aside; why it could not be, if it could not."""
        try:
            os.posix_fallocate(self.fd, self._allocated, octets)
        except OSError as fault:
            # A file that grew before the disk was full is cut back.
            os.ftruncate(self.fd, self._allocated)
            return fault
        self._allocated += octets
        return None


def is_full(fault: OSError) -> bool:
    """Whether this is the error of a disk, quota or file-size limit without room."""
    return fault.errno in _FULL


def no_room(fault: OSError) -> Unavailable:
    """What is said then."""
    return Unavailable(Code.SIGNER_UNAVAILABLE, f"the signer's journal has no room: {fault.strerror}", 30)


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _read_at(fd: int, offset: int) -> Block:
    length = read_length(os.pread(fd, HEADER_BYTES, offset))
    return read_block(os.pread(fd, length, offset), 0)
