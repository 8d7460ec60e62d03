"""EST (RFC 7030, 8951, 9908): translates between messages and the registration authority, and decides nothing itself."""
