"""Where what calibration looks at comes from: batches, and what one pass over them sees."""
