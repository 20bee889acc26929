"""The finders that are compared: each in its turn, and the Kalman filter of ACTS."""
