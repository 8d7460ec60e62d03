"""The process pool that holds issuer keys, its journal, and the client that workers call it with."""
