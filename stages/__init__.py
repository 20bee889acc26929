"""The five stages of the chain, their contract and the chain in process."""
