"""Turn docstrings, which are plain text with formulas, into reStructuredText that shows them as they are written.

The only markup is `name`, which becomes a link if it names something public.

    indented lines         a formula block, spaces kept
    name    what it is     a list of definitions, where all lines are of this form
    lam: one number ...    parameters, where `lam` is an argument of the object
    Statement: thm-x       a field; so are Shapes, and sentences that begin with Raises
    >>> doctest            a doctest block

Fields come after the prose, and doctests last.
"""

import inspect
import itertools
import re
import textwrap

FLAGS = ("convex", "separable", "indicator", "affine", "rowwise")
FIELDS = ("Statement", "Statements", "Shapes")
RAISES = re.compile(r"Raises (`?)(\w*Error|\w*Violation)\1 (.*)", re.S)
SENTENCE = re.compile(r"(?<=[.)])(?<!et al\.)(?:  +|\n)(?=[A-Z`])")
COLUMN = re.compile(r"(\w+(?:, \w+)*) {2,}(\S.*)|(\w+(?:, \w+)+): (\S.*)")
SPACED = re.compile(r"\S {3,}\S|^ {4}", re.M)  # an arrangement that is lost when lines are joined
OPERATOR = re.compile(r"[=<>^_|/*+]")
# Letters and functions of formulas; two other words in a row make a chunk prose.
MATHS = {"lam", "mu", "prox", "argmin", "min", "max", "sum", "sign", "sqrt", "inf", "if", "else", "for", "and"}


def convert(lines, arguments=(), public=frozenset()):
    """The reStructuredText lines of a docstring whose object takes `arguments`; names in `public` become links."""
    text = textwrap.dedent("\n".join(lines)).expandtabs().strip("\n")
    body, fields, examples = [], [], []
    for block in re.split(r"\n\s*\n", text):
        if not block.strip():
            continue
        if block.lstrip().startswith(">>>"):
            examples += ["", *textwrap.dedent(block).splitlines()]
        elif all(line.startswith("    ") for line in block.splitlines()):
            body += formulas(block)
        elif columns := _columns(block.rstrip()):
            body += ["", ".. container:: columns"]
            for name, what in columns:
                body += ["", f"    ``{name}``", f"        {prose(what, public)}"]
        elif SPACED.search(block):
            body += formulas(block)
        else:
            spoken = _sort(block, arguments, public, fields)
            if spoken:
                body += ["", prose(spoken, public)]
    return [*body, "", *fields, *examples, ""]


def formulas(block):
    """An indented block as a parsed literal; the gap before a label at the end of a line is closed."""
    rows = [re.sub(r" {3,}(\([a-z]+-[a-z0-9-]+\))$", r"   \1", line) for line in textwrap.dedent(block).splitlines()]
    return ["", ".. parsed-literal::", "    :class: formula", "", *(f"    {escape(row)}" for row in rows)]


def prose(text, public):
    """One paragraph on one line: backticks are code, and so are formulas set off by double spaces."""
    text = re.sub(r"\n *", " ", text.strip())
    chunks = re.split(r"(?<![.!?:)]) {2,}|(?<=[:)]) {2,}", text)
    alone = len(chunks) == 1
    return " ".join(_marked(chunk, public) if alone or not _is_formula(chunk) else _code(chunk) for chunk in chunks)


def escape(text):
    """Text in which nothing is markup."""
    return re.sub(r"([\\*`|_<>:\[\]])", r"\\\1", text)


def _sort(block, arguments, public, fields):
    """Move parameters and fields of a block into `fields`, and return the other sentences."""
    if arguments:
        names = "|".join(map(re.escape, arguments))
        parts = re.split(rf"(?:^|;\s|(?<=\.)\s+)({names}): ", block, flags=re.M)
        block = parts[0]
        for name, what in zip(parts[1::2], parts[2::2], strict=True):
            what, *rest = re.split(r"\n(?=Statements?: )", what)
            fields.append(f":param {name}: {prose(what, public)}")
            block += "".join(f"\n{line}" for line in rest)
    spoken = []
    for sentence in SENTENCE.split(block.strip()):
        key, colon, what = sentence.partition(": ")
        if colon and key in FIELDS:
            fields.append(f":{key}: {prose(what, public)}")
        elif raised := RAISES.match(sentence):
            fields.append(f":raises {raised[2]}: {prose(raised[3], public)}")
        else:
            spoken.append(sentence.strip())
    return "  ".join(spoken)


def _columns(block):
    rows = []
    for line in block.splitlines():
        if (found := COLUMN.fullmatch(line)) and not re.search(r"\S {3,}\S", found[2] or ""):
            rows.append([found[1] or found[3], found[2] or found[4]])
        elif rows and line.startswith("   "):
            rows[-1][1] += f"\n{line.strip()}"
        else:
            return []
    return rows


def _is_formula(chunk):
    words = [word in MATHS or not re.fullmatch(r"[A-Za-z]{2,}[,:;.]?", word) for word in chunk.split()]
    return "`" not in chunk and bool(OPERATOR.search(chunk)) and all(a or b for a, b in itertools.pairwise(words))


def _code(chunk):
    formula, mark = re.fullmatch(r"(.*?)([.,;:]?)", chunk).groups()
    return f"``{formula}``{escape(mark)}"


def _marked(text, public):
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"(?<!\w)\\\*(\w+)\\\*(?!\w)", r"*\1*", escape(part))
        elif part in public:
            parts[i] = f"\\ :py:obj:`{part} <proxsae.{part}>`\\ "
        else:
            parts[i] = f"\\ ``{part}``\\ "
    return "".join(parts)


def _process(app, what, name, obj, options, lines):
    import proxsae

    try:
        arguments = [p for p in inspect.signature(obj).parameters if p not in ("self", "o")]
    except (TypeError, ValueError):
        arguments = []
    lines[:] = convert(lines, arguments, app.public)
    if inspect.isclass(obj) and issubclass(obj, proxsae.Penalty) and obj is not proxsae.Penalty:
        flags = [flag for flag in FLAGS if getattr(obj, flag, False)]
        where = next((i for i, line in enumerate(lines) if line.startswith(">>>")), len(lines))
        lines[where:where] = [f":Flags: {', '.join(flags)}", ""]


def _signature(app, what, name, obj, options, signature, returns):
    """Leave out the type Any."""
    if signature:
        signature = re.sub(r": ~?(?:typing\.)?Any\b( = )?", lambda found: "=" if found[1] else "", signature)
        signature = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature)
    return signature, None if returns in ("None", "Any", "~typing.Any") else returns


def setup(app):
    """Hook into autodoc."""
    import proxsae

    app.public = {*proxsae.__all__, *(f"Penalty.{method}" for method in ("value", "prox", "slope"))}
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True}
