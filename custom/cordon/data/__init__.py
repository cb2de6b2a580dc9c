"""Clinical data: from a hospital's own form at rest to the contract's feature vectors in memory."""
