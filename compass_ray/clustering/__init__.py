"""Clusters of vectors: k-means and what is chosen about it."""

from compass_ray.clustering.kmeans import Clusters, fit_kmeans

__all__ = ["Clusters", "fit_kmeans"]
