"""The running service: it joins what events mean with how benefits reach people."""
