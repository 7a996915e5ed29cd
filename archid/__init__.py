"""archid: the daemon that gets light scripts to immersive cinemas, whole, verified and on time."""

__version__ = "0.1.0"
