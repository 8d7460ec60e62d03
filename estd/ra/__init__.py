"""The registration authority: who may ask (admission), and the one road to a certificate (enrollment)."""
