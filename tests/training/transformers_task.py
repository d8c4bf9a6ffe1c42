"""Real digits in two views, whose networks are transformers with small random configs: nothing is downloaded."""

import torch
from torch import nn
from transformers import ASTConfig, ASTModel, BertConfig, BertModel, ViTConfig, ViTModel

from edgekd.tasks.digits import Digits

#: The 216 profile correlations of a digit, as 18 steps of 12 values.
STEPS, VALUES = 18, 12
#: Of the raw correlations over all digits.
MEAN, DEVIATION = 318.0, 352.0


def size(width, layers):
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


class Fused(nn.Module):
    """A vision transformer for the image, another for the sequence, and a linear head on their class tokens."""

    def __init__(self, image, sequence, width):
        super().__init__()
        self.image, self.sequence = image, sequence
        self.head = nn.Linear(2 * width, len(Digits.classes))

    def encode(self, sequence):
        return self.sequence(sequence)

    def forward(self, pix, fac):
        image = self.image(pixel_values=pix / 3 - 1).pooler_output
        sequence = self.encode((fac.view(-1, STEPS, VALUES) - MEAN) / DEVIATION).pooler_output
        return {"logits": self.head(torch.cat([image, sequence], 1))}


def vit(width, layers):
    return ViTModel(ViTConfig(image_size=(16, 15), patch_size=(4, 5), num_channels=1, **size(width, layers)))


class Teacher(Fused):
    """The sequence is read as a spectrogram."""

    def __init__(self, width=48):
        patches = {"patch_size": 6, "frequency_stride": 6, "time_stride": 6}
        config = ASTConfig(max_length=STEPS, num_mel_bins=VALUES, **patches, **size(width, 2))
        super().__init__(vit(width, 2), ASTModel(config), width)


class Student(Fused):
    """The sequence is read token by token."""

    def __init__(self, width=32):
        super().__init__(vit(width, 1), BertModel(BertConfig(vocab_size=1, **size(width, 1))), width)
        self.tokens = nn.Linear(VALUES, width)

    def encode(self, sequence):
        return self.sequence(inputs_embeds=self.tokens(sequence))


class TransformerDigits(Digits):
    """The task. Taps are whole transformers, of whose outputs one part is read."""

    def __init__(self):
        super().__init__(views=("pix", "fac"))
        self.teacher_taps = {
            "pix": {"module": "image", "output": "pooler_output"},
            "fac": {"module": "sequence", "output": 1},
        }
        self.student_taps = self.teacher_taps

    def teacher(self):
        return Teacher()

    def student(self):
        return Student()
