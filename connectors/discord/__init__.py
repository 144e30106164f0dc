"""Discord's REST API, for the connector discord_role: the calls, their limits, and what refusals mean."""
