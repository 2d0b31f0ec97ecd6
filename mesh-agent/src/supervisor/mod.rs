//! The privileged half: pods, workers, capture and the stream to the control component.
