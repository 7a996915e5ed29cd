"""One module a step; each is applied once and never edited afterwards."""
