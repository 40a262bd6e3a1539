"""The page of credit: the advantages of each method on one response."""
