#!/usr/bin/env python3
"""Writes tests/golden/chat.json: what Jinja makes of the chat templates that runtime/chat.c knows.

The templates are those of the models named, cut to the parts that plain conversations reach (no
tools, no dates). Rendering is as in transformers: trim_blocks, lstrip_blocks.

    pip install jinja2
    python3 tests/golden/make_chat_vectors.py
"""
import json
import pathlib

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(__file__).resolve().parent / "chat.json"

SYS = {"role": "system", "content": "You are terse."}
U1 = {"role": "user", "content": "Hello"}
A1 = {"role": "assistant", "content": "Hi there"}
U2 = {"role": "user", "content": "Who are \"you\"?\nSay."}
A2 = {"role": "assistant", "content": "A 'model'."}
U3 = {"role": "user", "content": "Bye"}
ALL = [[U1], [SYS, U1], [U1, A1, U2], [SYS, U1, A1, U2, A2, U3]]
NO_SYSTEM = [[U1], [U1, A1, U2], [U1, A1, U2, A2, U3]]
FIRST_SYSTEM = NO_SYSTEM + [[SYS, U1]]      # templates that move the system message to the last turn

BARS = ("{{ '<|' + m['role'] + '|>' + '\\n' + m['content'] }}")
DEEPSEEK = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
            "{% elif message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{% else %}"
            "{{'<｜Assistant｜>@PAST@' + message['content'] + '<｜end▁of▁sentence｜>'}}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{'<｜Assistant｜>@OPEN@'}}@EXTRA@{% endif %}")
MISTRAL = ("{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
           "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
           "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
           "@TOOLS@{%- if loop.@WHEN@ and system_message is defined %}{{- @OPEN@ + system_message + '\\n\\n' + "
           "message['content'] + @CLOSE@ }}{%- else %}{{- @OPEN@ + message['content'] + @CLOSE@ }}{%- endif %}"
           "{%- else %}{{- @ANSWER@ + eos_token}}{%- endif %}{%- endfor %}")
LLAMA3 = ("{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
          "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
          "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
LLAMA31 = ("{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
           "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = \"\" %}{%- endif %}"
           "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}{{- \"Cutting Knowledge Date: December 2023\\n\" }}"
           "{{- \"Today Date: \" + \"26 Jul 2024\" + \"\\n\\n\" }}{{- system_message }}{{- \"<|eot_id|>\" }}"
           "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
           "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
           "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}")
QWEN = ("{% for message in messages %}@DEFAULT@{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n@OPEN@' }}{% endif %}")
GLM45 = ("[gMASK]<sop>\n{%- for m in messages %}\n{%- if m.role == 'user' -%}<|user|>\n{{ m.content }}\n"
         "{{- '/nothink' if (enable_thinking is defined and not enable_thinking) else '' -}}\n"
         "{%- elif m.role == 'assistant' -%}\n<|assistant|>\n{{- '\\n<think></think>' }}{%- if m.content.strip() -%}\n"
         "{{ '\\n' + m.content.strip() }}\n{%- endif -%}\n{%- elif m.role == 'system' -%}\n<|system|>\n{{ m.content }}\n"
         "{%- endif -%}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n    <|assistant|>\n{%- endif -%}\n")
HARMONY = ("{{- \"<|start|>system<|message|>\" }}{{- \"You are ChatGPT, a large language model trained by OpenAI.\\n\" }}"
           "{{- \"Knowledge cutoff: 2024-06\\n\\n\" }}{{- \"Reasoning: medium\\n\\n\" }}{{- \"# Valid channels: analysis, "
           "commentary, final. Channel must be included for every message.\" }}{{- \"<|end|>\" }}"
           "{%- if messages[0].role == \"developer\" or messages[0].role == \"system\" %}"
           "{%- set developer_message = messages[0].content %}{%- set loop_messages = messages[1:] %}{%- else %}"
           "{%- set developer_message = \"\" %}{%- set loop_messages = messages %}{%- endif %}{%- if developer_message %}"
           "{{- \"<|start|>developer<|message|>\" }}{{- \"# Instructions\\n\\n\" }}{{- developer_message }}{{- \"\\n\\n\" }}"
           "{{- \"<|end|>\" }}{%- endif %}{%- for message in loop_messages -%}{%- if message.role == 'assistant' -%}"
           "{{- \"<|start|>assistant<|channel|>final<|message|>\" + message.content + \"<|end|>\" }}"
           "{%- elif message.role == 'user' -%}{{- \"<|start|>user<|message|>\" + message.content + \"<|end|>\" }}"
           "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}\n<|start|>assistant\n{%- endif -%}")

# name, family, template, BOS, EOS, conversations
TABLE = [
    ("Qwen3", "chatml", QWEN.replace("@DEFAULT@", "").replace("@OPEN@", ""), "", "<|im_end|>", ALL),
    ("Qwen1.5", "chatml", QWEN.replace("@DEFAULT@", "{% if loop.first and messages[0]['role'] != 'system' %}"
     "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}").replace("@OPEN@", ""),
     "", "<|im_end|>", ALL),
    ("SmolLM2 (line breaks as such)", "chatml", QWEN.replace("@DEFAULT@", "{% if loop.first and messages[0]['role'] "
     "!= 'system' %}{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
     "<|im_end|>\\n' }}{% endif %}").replace("@OPEN@", "").replace("\\n", "\n"), "<|im_start|>", "<|im_end|>", ALL),
    ("Qwen3-Thinking-2507", "chatml-think", QWEN.replace("@DEFAULT@", "").replace("@OPEN@", "<think>\\n"), "",
     "<|im_end|>", ALL),
    ("Llama-2-chat", "llama-2",
     "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
     "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
     "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}{% set content = "
     "'<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = "
     "message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + "
     "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
     "{% endfor %}", "<s>", "</s>", ALL),
    ("Meta-Llama-3-8B-Instruct", "llama-3", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ALL),
    ("Llama-3.1-8B-Instruct", "llama-3.1", LLAMA31, "<|begin_of_text|>", "<|eot_id|>", ALL),
    ("Llama-4", "llama-4", LLAMA3.replace("start_header_id", "header_start").replace("end_header_id", "header_end")
     .replace("eot_id", "eot"), "<|begin_of_text|>", "<|eot|>", ALL),
    ("Mixtral-8x7B-Instruct-v0.1, first", "mistral-v0",
     "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
     "+ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}"
     "{% endfor %}", "<s>", "</s>", NO_SYSTEM),
    ("Mixtral-8x7B-Instruct-v0.1", "mistral-v1", MISTRAL.replace("@TOOLS@", "").replace("@WHEN@", "first")
     .replace("@OPEN@", "' [INST] '").replace("@CLOSE@", "' [/INST]'").replace("@ANSWER@", "' ' + message['content']"),
     "<s>", "</s>", ALL),
    ("Mistral-7B-Instruct-v0.3", "mistral-v3", MISTRAL.replace("@TOOLS@", "{%- if tools is defined %}{{- "
     "'[AVAILABLE_TOOLS] [' }}{%- endif %}").replace("@WHEN@", "last").replace("@OPEN@", '"[INST] "')
     .replace("@CLOSE@", '"[/INST]"').replace("@ANSWER@", '" " + message["content"]|trim'), "<s>", "</s>", FIRST_SYSTEM),
    ("Mistral-Nemo-Instruct-2407", "mistral-v3-tekken", MISTRAL.replace("@TOOLS@", "{%- if tools is defined %}{{- "
     "'[AVAILABLE_TOOLS][' }}{%- endif %}").replace("@WHEN@", "last").replace("@OPEN@", '"[INST]"')
     .replace("@CLOSE@", '"[/INST]"').replace("@ANSWER@", 'message["content"]'), "<s>", "</s>", FIRST_SYSTEM),
    ("Mistral-Large-Instruct-2411", "mistral-v7",
     "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
     "+ '[/INST]' }}{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['content'] + "
     "'[/SYSTEM_PROMPT]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}", "<s>", "</s>",
     ALL),
    ("Mistral-Small-3.1", "mistral-v7-tekken",
     "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] "
     "+ '[/INST]' }}{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'] + "
     "'[/SYSTEM_PROMPT]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}", "<s>", "</s>", ALL),
    ("DeepSeek-V2-Lite-Chat", "deepseek-2",
     "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + "
     "'\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
     "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
     "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}", "<｜begin▁of▁sentence｜>",
     "<｜end▁of▁sentence｜>", ALL),
    ("DeepSeek-V3", "deepseek-3", DEEPSEEK.replace("@PAST@", "").replace("@OPEN@", "").replace("@EXTRA@", ""),
     "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ALL),
    ("DeepSeek-R1", "deepseek-r1", DEEPSEEK.replace("@PAST@", "").replace("@OPEN@", "<think>\\n").replace("@EXTRA@", ""),
     "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ALL),
    ("DeepSeek-V3.1", "deepseek-3.1", DEEPSEEK.replace("@PAST@", "</think>").replace("@OPEN@", "")
     .replace("@EXTRA@", "{{'</think>'}}"), "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ALL),
    ("glm-4-9b-chat", "glm-4", "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}", "", "<|endoftext|>", ALL),
    ("GLM-4.5-Air", "glm-4.5", GLM45, "", "<|endoftext|>", ALL),
    ("gpt-oss-20b", "harmony", HARMONY, "<|startoftext|>", "<|return|>", ALL),
    ("granite-3.0-1b-a400m-instruct", "granite",
     "{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
     "message['content'] + '<|end_of_text|>\\n' }}{%- if loop.last and add_generation_prompt %}"
     "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}", "", "<|end_of_text|>", ALL),
    ("Phi-3-mini", "phi-3",
     "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\\n' + "
     "message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}{% elif (message['role'] == 'assistant') %}"
     "{{message['content'] + '<|end|>' + '\\n'}}{% endif %}{% endfor %}", "<s>", "<|endoftext|>", NO_SYSTEM),
    ("Phi-3.5-MoE-instruct", "phi-3",
     "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + "
     "message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + "
     "'<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}"
     "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
     "<s>", "<|endoftext|>", ALL),
    ("phi-4", "phi-4",
     "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
     "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
     "message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}"
     "{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}", "", "<|im_end|>", ALL),
    ("Phi-4-mini-instruct", "phi-4-mini",
     "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}", "", "<|endoftext|>", ALL),
    ("OLMoE-1B-7B-0924-Instruct", "olmoe",
     "{{ bos_token }}{% for message in messages %}\n{% if message['role'] == 'system' %}\n{{ '<|system|>\\n' + "
     "message['content'] }}\n{% elif message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] }}\n"
     "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
     "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
     "<|endoftext|>", "<|endoftext|>", ALL),
    ("OLMo-7B-Instruct (EOS in front)", "olmoe",
     "{{ eos_token }}{% for message in messages %}\n{% if message['role'] == 'system' %}\n{{ '<|system|>\\n' + "
     "message['content'] }}\n{% elif message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] }}\n"
     "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
     "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
     "", "<|endoftext|>", ALL),
    ("zephyr-7b-beta", "zephyr",
     "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + "
     "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
     "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
     "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
     "<s>", "</s>", ALL),
    ("Kimi-K2-Instruct", "kimi",
     "{%- for message in messages -%}{%- if loop.first and messages[0]['role'] != 'system' -%}"
     "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>{%- endif -%}"
     "{%- if message['role'] == 'system' -%}<|im_system|>system<|im_middle|>{%- elif message['role'] == 'user' -%}"
     "<|im_user|>user<|im_middle|>{%- else -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"
     "{{ message['content'] }}<|im_end|>{%- endfor -%}{%- if add_generation_prompt -%}"
     "<|im_assistant|>assistant<|im_middle|>{%- endif -%}", "", "<|im_end|>", ALL),
]


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    out = []
    for name, family, template, bos, eos, talks in TABLE:
        t = env.from_string(template)
        cases = [{"messages": m, "text": t.render(messages=m, bos_token=bos, eos_token=eos, add_generation_prompt=True)}
                 for m in talks]
        out.append({"name": name, "family": family, "template": template, "bos": bos, "eos": eos, "cases": cases})
    OUT.write_text(json.dumps({"jinja2": jinja2.__version__, "templates": out}, ensure_ascii=False, indent=1) + "\n")
    print(f"{OUT.name}: {len(out)} templates, {sum(len(o['cases']) for o in out)} conversations")


if __name__ == "__main__":
    main()
