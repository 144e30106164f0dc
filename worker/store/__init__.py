"""Every query, and the tables that they are about."""
