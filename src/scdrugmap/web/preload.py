"""What every job needs, imported once by the process that the jobs are forked from."""

# ruff: noqa: F401
import anndata
import scanpy
import sklearn.linear_model
import sklearn.manifold
import torch

import scdrugmap.pp._check
import scdrugmap.tl._benchmark
import scdrugmap.tl._predict_response
import scdrugmap.tl._train
