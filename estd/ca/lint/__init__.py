"""The last look at a certificate before it is signed: rules of its own, with a DER walk of its own."""
