"""The published tables, reproduced: networks, protocols and peers."""
