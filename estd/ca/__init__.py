"""What a good certificate is: profiles, key rules, templates, lint, and the approval that one signature spends."""
