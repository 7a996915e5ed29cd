"""Connections between nodes: TLS streams, the listener, the dialer and the peer pump."""
