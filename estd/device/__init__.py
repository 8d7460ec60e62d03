"""The other end of the wire: an EST client for devices, used by `estd enroll` and by the demonstration."""
