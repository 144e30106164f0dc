"""What you set: the settings, the catalogue of benefits, and how logs are written."""
