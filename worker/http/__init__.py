"""The HTTP side: the receiver, the answers for apps, downloads, and what operators need."""
