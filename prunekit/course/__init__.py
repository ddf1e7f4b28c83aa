"""The course: exercises that say whether an answer is right, a student's copy without solutions, grading.

An exercise stands behind the end of its lesson and has up to four cells, known by their tags: the question
(`exercise`), `answer_3 = ...` or a function without a body (`answer`), `pk.grade(3, answer_3)` (`check`), and
a folded solution that passes that check (`solution`). An open question has no answer and no check. What makes
an answer right stands in `checks`, one module for each notebook: no copy shows it.
"""
