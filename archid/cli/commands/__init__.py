"""One module for each command, or group of commands, of `archid`; each has a `command`."""
