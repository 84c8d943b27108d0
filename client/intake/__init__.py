"""What a hospital really has (DICOM folders, a PACS, a C-STORE sender) taken in as one clean, private store."""
