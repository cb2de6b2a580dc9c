"""Evidence about who runs what: what is bound, who judges it, what follows. Specification: README.md."""
