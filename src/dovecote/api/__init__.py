"""HTTP at the edge: parse, call one room, render."""
