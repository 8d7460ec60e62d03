"""The independent auditor: proves what estd promises about issuance, on another code path than the one that writes."""
