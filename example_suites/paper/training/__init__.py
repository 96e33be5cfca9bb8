"""How the miniatures are made: their shapes, what they are trained on, the loop, the exam."""
