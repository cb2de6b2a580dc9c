"""The only part of Cordon that imports nvflare."""
