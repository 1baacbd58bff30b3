"""Models at work: files loaded on a provider, requests batched, clips classified."""
