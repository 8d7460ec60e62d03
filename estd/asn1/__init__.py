"""DER, object identifiers and public keys as they stand in DER: the alphabet of everything above. No I/O, no clock."""
