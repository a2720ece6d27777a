"""Bundles: trained models in folders; saving, loading, predicting."""
