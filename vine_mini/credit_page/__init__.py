"""The page of credit: the advantages by each method on one response."""
