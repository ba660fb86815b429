"""Six short documents, and questions that their words or their meaning answer."""

from workbench.retrieval.documents import Document

TEXTS = {
    "tides": "The tide comes in twice a day. The moon pulls the sea.",
    "bread": "Flour, water, salt and time make bread. A sourdough rises slowly.",
    "bees": "Bees dance to tell where flowers are. A hive holds a queen.",
    "glass": "Sand melts into glass at 1700 degrees. Soda lowers that.",
    "rain": "Rain falls when drops grow too heavy for the air that lifts them.",
    "boats": "A ferry has twelve seats. The captain takes one of the seats.",
}
QUESTIONS = [
    "How many seats does the ferry have?",
    "What melts?",
    "Who pulls the sea twice a day?",
    "insects and blossom",
]
DOCUMENTS = [Document(name, text) for name, text in TEXTS.items()]
