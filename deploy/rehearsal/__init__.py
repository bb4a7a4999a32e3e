"""`make rehearse`: a campaign over hundreds of virtual contributors in one process, with the code of production."""
