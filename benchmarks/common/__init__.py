"""What the benchmarks share: a baseline server, a service under test, and a load that stops by itself."""
