"""The verbs of greylag-coordinator, by what they are about. Heavy imports wait inside them."""
