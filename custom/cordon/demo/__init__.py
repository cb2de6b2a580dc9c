"""What only the demo and the benches do: public data, its split over hospitals, baselines that pool data."""
