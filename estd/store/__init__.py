"""What must survive: the contract, PostgreSQL behind it, its migrations, and the private server for a start without one."""
