"""What a good certificate is: profiles, key rules, templates, lint, and the one-shot approval that a signature spends."""
