"""estd: an EST (RFC 7030) server that gives connected devices their certificates.

Start reading at ``docs/architecture.md``; the floors of the house and the road of a request are on one page there.
"""

__version__ = "0.1.0"
