"""The model: the only home of activations; imports `protocol` alone.

Shapes in docstrings use one set of letters: b batch, s tokens of a sequence, t tokens of a whole batch (b * s), d d_in
of a module, o d_out, r rank, n experts, k chosen experts. Formulas have letters of their own: A and B are an expert's
factors, s is its scaling alpha / r, v its gate; u enters a module, and y = W u + b leaves its linear part.

Rooms, from the ground up; each may import those below it, never one beside it:

    cli                     doors: what a person types and is shown
    serving | evaluation    answering others; a release on somebody's own tasks
    model                   base, experts and routing as one model
    follow | methods | training    releases from a coordinator; ways to route; what a client trains with
    layer                   choosing experts for a token, and adding what they say
    pool | settings         experts in memory; what a user may set
    base | query            the frozen model; what is asked and answered
"""
