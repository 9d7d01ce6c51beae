"""Published packages' names, in the published packages' modules, over this library's classes.

Each subpackage is one package: where code had `from IBA.tensorflow_v1 import IBALayer`, it has
`from iba_tf.compat.iba.tensorflow_v1 import IBALayer`. The modules hold no formula.
They give the published names, arguments, defaults and return values where those differ from this
library's own. The migration pages say what differs on purpose.
"""
