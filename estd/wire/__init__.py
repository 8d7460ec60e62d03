"""Bytes to values and back: DER, PKCS #10, CMS, CsrAttrs, and the neutral request and answer. No I/O, no clock."""
