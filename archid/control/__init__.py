"""The local admin socket: its wire format, the daemon's side and the client's side."""
