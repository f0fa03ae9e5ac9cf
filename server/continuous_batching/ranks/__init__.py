"""A model split over several processes: rank 0 is the engine process, and the others do as it says."""
