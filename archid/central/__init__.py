"""Central's thin control plane: definitions in, signed documents out."""
