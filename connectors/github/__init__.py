"""GitHub's REST API, for the connector github_repository: signing in, asking, and what its answers mean."""
