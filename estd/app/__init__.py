"""The roof: builds everything from the settings, starts the processes and keeps them alive."""
